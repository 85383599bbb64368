"""The results of a run: report.json for programs, failed.txt for the next run, and a human-readable summary."""

from mirror.output.report.files import Report, check_output_path, read_references_file
from mirror.output.report.records import Failure, ImageEntry, Result, RunCost
from mirror.output.report.summary import format_duration, format_size, summary

__all__ = [
    "Failure",
    "ImageEntry",
    "Report",
    "Result",
    "RunCost",
    "check_output_path",
    "format_duration",
    "format_size",
    "read_references_file",
    "summary",
]
