"""The lab: NeMo's own classes judge the commands and the files that this program makes. ``make nemo-lab`` runs it."""
