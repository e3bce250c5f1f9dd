"""Running: a plan is carried out here, in jobs of a cluster, or by scripts."""
