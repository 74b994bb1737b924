"""The controls: failures injected on purpose, which prove in every run that the checks detect them.

A control is a function like a check, and passes when its failure is detected as it should be, and where. `injected` has the
controls; `fixed_upstream` has, for each failure that later versions fixed, the check that takes its control's place there.
"""
