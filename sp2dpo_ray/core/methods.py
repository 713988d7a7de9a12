"""The catalogue of pair losses: what each is, where it comes from, and what it can be given.

In: nothing. Out: METHODS, a row a method; the functions stand under the same names in
`objectives/pair_loss.py`. Invariant: a row says how its formula was verified, and what was not is
told to whoever trains with it.

Signs: r_w, r_l log-ratios of policy and reference summed over a response's tokens, h = r_w - r_l;
a bar is the mean over tokens; d the policy's log-probabilities of chosen less rejected, s the
logistic function, b the pair's beta, e epsilon, g gamma.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sp2dpo_ray.errors import ConfigError

SUM, MEAN = "sum", "mean"
# where betas of sums and of means over tokens are found in the authors' own settings, with room
SCALES = {SUM: (0.0, 1.5), MEAN: (0.5, 100.0)}


class Verified(StrEnum):
    """How a formula was checked."""

    CODE = "in the authors' code"
    LIBRARY = "in a library's code"
    TEXT = "in the paper's text"
    SECONDARY = "in secondary sources only"
    OURS = "nowhere: the paper leaves the rule open, and this one is ours"


@dataclass(frozen=True, slots=True)
class Option:
    """A number that a method takes besides beta: default, least (inclusive), below (exclusive)."""

    default: float
    least: float
    below: float = float("inf")


@dataclass(frozen=True, slots=True)
class Method:
    """scale: whether beta multiplies log-ratios that are summed over tokens or means of them; a
    beta of the one is far off for the other. beta: where the arm names none; None: it must, or a
    schedule gives it. uses_beta: False where the loss knows no beta at all. whole_step:
    terms are made of all pairs of a step, which costs one more forward pass. prior: betas must come
    from a schedule, whose envelope bounds what is made of them. weighted: each pair has a weight,
    made beforehand of its external margin (`train.margin`). tokens: of a response only the tokens
    count that the student is less sure of than of the response on average."""

    title: str
    formula: str
    source: str
    verified: Verified
    scale: str = SUM
    beta: float | None = None
    uses_beta: bool = True
    whole_step: bool = False
    prior: bool = False
    weighted: bool = False
    tokens: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)

    @property
    def flag(self) -> str:
        """What whoever trains with it should know; '' if nothing."""
        if self.verified not in (Verified.SECONDARY, Verified.OURS):
            return ""
        return (
            f"the formula of {self.title} was found {self.verified}: check it before you rely on it"
        )


FLIPS = {"epsilon": Option(0.1, 0.0, 0.5)}

METHODS: dict[str, Method] = {
    "logistic": Method("DPO; with a schedule SP2DPO", "-log s(b h)",
                       "Eqs. 5, 6; Rafailov et al. 2023, arXiv:2305.18290", Verified.CODE),
    "hybrid": Method("SP2DPO with the student's margin", "-log s(b' h), b' = b (1 + a (2 s(b h) - "
                     "1)) within the envelope, b' not differentiated",
                     "the idea: SP2DPO, sections 6.2 and J.5", Verified.OURS, prior=True,
                     options={"a": Option(0.5, -0.99, 1.0)}),
    "dpo_norm": Method("DPO per token", "-log s(b h_bar)", "TRL and open-instruct",
                       Verified.LIBRARY, MEAN, beta=5.0),
    "hinge": Method("SLiC's hinge", "max(0, 1 - b h)", "Zhao et al. 2023, arXiv:2305.10425",
                    Verified.LIBRARY),
    "ipo": Method("IPO per token", "(h_bar - 1 / (2 b))^2", "Azar et al. 2023, arXiv:2310.12036; "
                  "means as in TRL", Verified.LIBRARY),
    "ipo_sum": Method("IPO", "(h - 1 / (2 b))^2", "Azar et al. 2023, Eq. 17, arXiv:2310.12036",
                      Verified.CODE),
    "cdpo": Method("cDPO", "-(1 - e) log s(b h) - e log s(-b h)", "Mitchell 2023", Verified.CODE,
                   options=FLIPS),
    "robust": Method("robust DPO", "(-(1 - e) log s(b h) + e log s(-b h)) / (1 - 2 e)",
                     "Chowdhury et al. 2024, arXiv:2403.00409", Verified.LIBRARY, options=FLIPS),
    "apo_zero": Method("APO-zero", "1 - s(b r_w) + s(b r_l)",
                       "D'Oosterlinck et al. 2024, arXiv:2408.06266", Verified.LIBRARY),
    "apo_down": Method("APO-down", "s(b r_w) + 1 - s(b h)",
                       "D'Oosterlinck et al. 2024, arXiv:2408.06266", Verified.LIBRARY),
    "simpo": Method("SimPO", "-log s(b (d_bar - g))", "Meng et al. 2024, arXiv:2405.14734",
                    Verified.CODE, MEAN, beta=2.0, options={"gamma": Option(0.25, 0.0)}),
    "repo": Method("RePO", "max(0, g - d_bar)", "arXiv:2503.07426", Verified.CODE, MEAN, beta=1.0,
                   uses_beta=False, options={"gamma": Option(0.4, 0.0)}),
    "cal_dpo": Method("Cal-DPO", "-log s(h) + ((r_w - 1 / (2 b))^2 + (r_l + 1 / (2 b))^2) / 2",
                      "Xiao et al. 2024, arXiv:2412.14516", Verified.CODE, beta=0.002),
    "bpo": Method("balanced BPO", "-log s(min(b r_w, -alpha b r_l))", "arXiv:2506.03557",
                  Verified.SECONDARY, options={"alpha": Option(0.3, 0.01, 1.01)}),
    "focal": Method("FocalPO", "-s(b h)^g log s(b h), the power not differentiated",
                    "arXiv:2501.06645", Verified.SECONDARY, options={"gamma": Option(1.0, 0.0)}),
    "madpo": Method("MADPO", "-w log s(b h), w = s(c m) / s(m) of the external margin m",
                    "arXiv:2510.05342", Verified.CODE, weighted=True,
                    options={"c_max": Option(2.0, 1.01), "tau": Option(6.907, 0.0)}),
    "confpo": Method("ConfPO", "-log s(b (d_bar' - g)), bars over the tokens below their mean "
                     "probability", "arXiv:2506.08712", Verified.CODE, MEAN, beta=1.5, tokens=True,
                     options={"gamma": Option(1.0667, 0.0)}),
    "beta_dpo": Method("beta-DPO", "-log s(b (1 + a (mean h - mu)) h) over the pairs kept",
                       "Wu et al. 2024, arXiv:2407.08639", Verified.CODE, whole_step=True,
                       options={"rho": Option(0.2, 0.0, 1.0), "a": Option(0.6, 0.0)}),
    "alpha_dpo": Method("AlphaDPO", "-log s(b (d_bar - g - alpha z)), z of h_bar",
                        "Wu et al. 2024, arXiv:2410.10148", Verified.CODE, MEAN, beta=2.5,
                        whole_step=True,
                        options={"gamma": Option(0.6, 0.0), "alpha": Option(0.2, 0.0)}),
    "gamma_po": Method("gamma-PO", "-log s(b d_bar - m), m larger for larger gaps, mean m = b g",
                       "gammaPO repository", Verified.CODE, MEAN, beta=10.0, whole_step=True,
                       options={"gamma": Option(0.4, 0.0), "tau": Option(10.0, 0.01)}),
    "amapo": Method("AMaPO", "-log s(b d_bar - m), m = b [d_bar < mu] exp(mu (mu - d_bar) / sd)",
                    "arXiv:2511.09385", Verified.CODE, MEAN, beta=2.0, whole_step=True),
}  # fmt: skip


def options_of(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """The method's options with those given; ConfigError for one that it does not take."""
    row = METHODS[name]
    for key, value in given.items():
        if key not in row.options:
            known = ", ".join(row.options) or "none"
            raise ConfigError(f"method {name} takes no option {key!r}; its options: {known}")
        allowed = row.options[key]
        if not allowed.least <= value < allowed.below:
            raise ConfigError(
                f"method {name}: {key} must be at least {allowed.least:g} and below "
                f"{allowed.below:g}, got {value:g}"
            )
    return {key: option.default for key, option in row.options.items()} | dict(given)


def check_beta(name: str, beta: float) -> None:
    """Refuse a beta of sums for a method of means, and the other way round."""
    row = METHODS[name]
    least, most = SCALES[row.scale]
    if not least < beta <= most:
        raise ConfigError(
            f"method {name} multiplies beta with log-ratios "
            f"{'summed over tokens' if row.scale == SUM else 'per token'}; beta {beta:g} is not "
            f"within {least:g} to {most:g}"
        )
