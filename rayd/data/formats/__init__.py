"""How data sets lie on disk, one layout a module: each says what it can read (`matches`) and opens
it (`open_source`).

Opening a source reads its labels; its images are decoded when, and only where, they are asked for.
"""
