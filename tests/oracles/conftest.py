"""At the end of a run: how much each oracle compared, what is unsupported and why, what failed."""

from collections import Counter, defaultdict


def pytest_terminal_summary(terminalreporter):
    totals = defaultdict(Counter)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown":
                for key, value in report.user_properties:
                    if key == "oracle":
                        totals[value[0]].update(value[1])
    for oracle, counts in totals.items():
        terminalreporter.section(f"oracle: {oracle}")
        unsupported = {k: n for k, n in counts.items() if k.startswith("unsupported")}
        terminalreporter.write_line(
            f"{counts['compared']} compared, {sum(unsupported.values())} unsupported, "
            f"{counts['failed']} failed"
        )
        for reason, n in sorted(unsupported.items(), key=lambda item: -item[1]):
            terminalreporter.write_line(f"{n:6} {reason}")
