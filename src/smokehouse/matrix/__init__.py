"""Matrices: what works with what, measured cell by cell, and read back for pages and advice.

    >>> from smokehouse.matrix import grid, measure
    >>> measure.run(checkout, grid.read(checkout, "qwen2.5-vl", {"transformers": ["4.51.3"]}), measure.Settings())

A cell is one combination of versions. `grid` says which are to be measured, `measure` installs and measures one, `outcome`
reads its verdicts, and `store` keeps them in `matrix/<model>.json`.
"""
