"""The stages of a run, one a module; see `rayd.engine.stage`."""
