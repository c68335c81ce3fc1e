"""Data set formats on disk, one per module, with `matches` (detection) and `open_source`.

Opening a source reads its labels; images are decoded on demand, by the process that needs them.
"""
