"""The results of a run: report.json for programs, failed.txt for the next run, and a human-readable summary."""

from mirror.output.report.cause_lines import cause_lines
from mirror.output.report.causes import Cause, Causes
from mirror.output.report.changes import ChangeRow, change_table
from mirror.output.report.files import Report, check_output_path, read_references_file
from mirror.output.report.records import Change, FailedImage, Failure, ImageEntry, Result, RunCost
from mirror.output.report.summary import summary
from mirror.output.report.units import format_count, format_duration, format_size

__all__ = [
    "Cause",
    "Causes",
    "Change",
    "ChangeRow",
    "FailedImage",
    "Failure",
    "ImageEntry",
    "Report",
    "Result",
    "RunCost",
    "cause_lines",
    "change_table",
    "check_output_path",
    "format_count",
    "format_duration",
    "format_size",
    "read_references_file",
    "summary",
]
