"""What a report of the gradient checker says, in few words."""


def states(report, *names):
    """The states of the verdicts concerned; of all without names."""
    return {name: report.verdicts[name].state for name in names or report.verdicts}


def passes(*names):
    return dict.fromkeys(names, "pass")


def failures(report):
    return {name for name, state in states(report).items() if state == "fail"}


def wrong_leaves(report):
    return {path for path, leaf in report.leaves.items() if not leaf.ok}
