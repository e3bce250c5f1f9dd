"""Answer -> grade: whether it helps, declines, evades or is no language; by rules that can be read, or by a judge."""
