"""The drafters, one file each: a file with a class under `@register` is all that one takes."""
