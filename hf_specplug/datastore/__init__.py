"""Token datastores: folders of arrays that are complete or not there, opened by mapping."""
