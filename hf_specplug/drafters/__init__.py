"""The drafters, one file each. A file that registers a class with `@register` is all that one takes."""
