"""The kinds of datastore, one file each; see `registry`."""
