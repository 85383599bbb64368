"""What a run did: report.json for machines, failed.txt for the next run, a few lines for people (design §4.4)."""

from mirror.output.report.files import Report, check_copy, read_only_from
from mirror.output.report.records import Effort, Failure, ImageEntry, Result
from mirror.output.report.summary import duration, size, summary

__all__ = [
    "Effort",
    "Failure",
    "ImageEntry",
    "Report",
    "Result",
    "check_copy",
    "duration",
    "read_only_from",
    "size",
    "summary",
]
