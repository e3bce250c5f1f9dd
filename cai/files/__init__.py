"""Files: what lies on the disk, and how it is read and written so that nothing is lost."""
