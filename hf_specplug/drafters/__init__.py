"""The drafters, one file each: a class with the decorator `@register` is all that one takes.

Start with `contract.py` (what a drafter is) and `context.py` (a complete one).
"""
