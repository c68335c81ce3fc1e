"""Who does the work: groups of workers, observers, the synthesizer, stages, and the driver that
runs them one after another.
"""
