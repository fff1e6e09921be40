"""A page that shows what a run has done, made from its records: ``python -m fedma_flwr.report``.

It knows no Flower, and needs matplotlib: ``pip install "fedma-flwr[report]"``.
"""

from fedma_flwr.report.records import ReportError, Run, read_run, runs_in
from fedma_flwr.report.write import make_page, write_report

__all__ = ["ReportError", "Run", "make_page", "read_run", "runs_in", "write_report"]
