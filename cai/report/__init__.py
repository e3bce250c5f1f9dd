"""The report: one HTML file about one run or several, which fetches nothing and runs no text of a model."""
