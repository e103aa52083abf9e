"""Reports: one HTML file that needs nothing else, from what lies in a run's folder."""

from motet.experiment.report.page import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
