"""Pages: the documentation that is generated from environments, locks and reports, and nothing else.

    >>> from smokehouse.pages import update
    >>> update.make(checkout, [], None)  # write the page of each environment, and the README's generated parts
    >>> update.check(checkout, [])  # 1 where one of them is out of date

`environment` renders one page, `markdown` shows any text literally.
"""
