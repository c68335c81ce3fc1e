"""The command line as a script, for `ray submit CLUSTER.yaml clusters/rayd_job.py -- distill ...`.

`ray submit` runs scripts only.
"""

from rayd.cli import main

if __name__ == "__main__":
    main()
