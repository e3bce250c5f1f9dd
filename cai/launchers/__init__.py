"""Launchers: where the processes of a step run. ``local``: process groups on this machine; ``slurm``: jobs."""
