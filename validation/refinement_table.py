"""A correction in phi or in run ranges in words and as plain numbers, with the split tests before and after it."""

from collections.abc import Sequence

import numpy as np

from musclecal.records import ClosureSplits, Floats, PhiRefinement, RunRefinement

__all__ = ["refinement_table", "refinement_text"]

_UNITS = {"A": 1e-5, "M": 1e-6}


def _by_term(refinement: PhiRefinement | RunRefinement) -> dict[str, tuple[Floats, Floats]]:
    """(values, errors), each (n_eta, n_term), of A and of M."""
    r = refinement
    errors = np.sqrt(np.diagonal(r.covariance)).reshape(*r.A.shape, 2)
    pairs = {"A": (r.A, errors[..., 0]), "M": (r.M, errors[..., 1])}
    if isinstance(r, RunRefinement):
        return {name: (values.T, error.T) for name, (values, error) in pairs.items()}
    return pairs


def refinement_table(
    refinement: PhiRefinement | RunRefinement,
    before: ClosureSplits,
    after: ClosureSplits,
    fitted: Sequence[str],
) -> dict[str, object]:
    """Plain numbers. ``fitted`` : names of the split tests that are none any more on the same sample."""
    r = refinement
    table: dict[str, object] = {
        "resonance": r.resonance,
        "terms": list(r.terms),
        "eta_edges": r.eta_edges.tolist(),
    }
    for name, (values, errors) in _by_term(r).items():
        table |= {name: values.tolist(), f"{name}_error": errors.tolist()}
    now = {test.name: test for test in after.tests}
    return table | {
        "chi2": r.chi2,
        "ndf": r.ndf,
        "p_value": r.p_value,
        "passes": r.passes,
        "last_change": r.last_change,
        "tests": [
            {
                "name": test.name,
                "p_before": test.p_value,
                "p_after": now[test.name].p_value,
                "fitted": test.name in fitted,
            }
            for test in before.tests
        ],
    }


def refinement_text(
    refinement: PhiRefinement | RunRefinement,
    before: ClosureSplits,
    after: ClosureSplits,
    fitted: Sequence[str],
) -> str:
    """A and M of every term, and the split tests before and after."""
    r = refinement
    lines = [f"{r.resonance}: correction that is still to be applied (A in 1e-5, M in 1e-6/GeV)"]
    for name, (values, errors) in _by_term(r).items():
        values, errors = values / _UNITS[name], errors / _UNITS[name]
        if len(r.terms) <= 8:
            lines.append(f"{name:<17}" + "".join(f"{term:>18}" for term in r.terms))
            for i, (low, high) in enumerate(zip(r.eta_edges[:-1], r.eta_edges[1:], strict=True)):
                numbers = (f"{v:+9.2f} +-{e:6.2f}" for v, e in zip(values[i], errors[i], strict=True))
                lines.append(f"{low:+6.2f} .. {high:+6.2f} " + "".join(f"{number:>18}" for number in numbers))
        else:
            spread = np.sqrt(np.mean(values**2, axis=0))
            for t, term in enumerate(r.terms):
                lines.append(
                    f"{name} {term:<22} rms over eta {spread[t]:8.2f}, median error {np.median(errors[:, t]):7.2f}"
                )
    lines.append(
        f"fit chi2 {r.chi2:.0f}/{r.ndf} (p = {r.p_value:.2g}); {r.passes} passes, "
        f"the last one changed chi2/n by {r.last_change:.3f}"
    )
    lines.append("split test           p before    p after")
    now = {test.name: test for test in after.tests}
    for test in before.tests:
        mark = "  fitted: no test any more" if test.name in fitted else ""
        lines.append(f"  {test.name:<18} {test.p_value:9.2g}  {now[test.name].p_value:9.2g}{mark}")
    lines.append(
        f"{r.resonance} was used for this correction: it is no independent closure of muons that are corrected "
        "with it. Close on another resonance, or derive on half of the events and close on the other half."
    )
    return "\n".join(lines)
