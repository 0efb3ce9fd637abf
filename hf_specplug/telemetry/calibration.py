"""Calibration: whether drafted tokens are accepted as often as the mixer predicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 20


def _zeros() -> NDArray[np.float64]:
    return np.zeros((3, BINS))


@dataclass
class Calibration:
    """Predicted and realised acceptance of drafted nodes whose parent was accepted.

    Attributes:
        bins: float64[3, 20], rows `count`, `predicted` and `accepted`.

    Example:
        >>> calibration = Calibration()
        >>> calibration.ece
        0.0
    """

    bins: NDArray[np.float64] = field(default_factory=_zeros)

    @property
    def count(self) -> NDArray[np.float64]:
        """float64[20], nodes by predicted probability: [0, 0.05), [0.05, 0.1), ..."""
        row: NDArray[np.float64] = self.bins[0]
        return row

    @property
    def predicted(self) -> NDArray[np.float64]:
        """float64[20], the sum of the predicted probabilities in each bin."""
        row: NDArray[np.float64] = self.bins[1]
        return row

    @property
    def accepted(self) -> NDArray[np.float64]:
        """float64[20], the number of accepted nodes in each bin."""
        row: NDArray[np.float64] = self.bins[2]
        return row

    def add(self, other: Calibration) -> None:
        """Add the counts of another calibration."""
        self.bins += other.bins

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean of |predicted - realised| over all nodes."""
        total = self.count.sum()
        return float(np.abs(self.predicted - self.accepted).sum() / total) if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The bins as lists, and the expected calibration error, for JSON."""
        return {
            "count": self.count.astype(int).tolist(),
            "predicted": self.predicted.round(4).tolist(),
            "accepted": self.accepted.astype(int).tolist(),
            "ece": self.ece,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        lines = ["predicted  accepted  nodes"]
        for count, predicted, accepted in zip(
            self.count, self.predicted, self.accepted, strict=True
        ):
            if count:
                lines.append(f"{predicted / count:9.3f}  {accepted / count:8.3f}  {count:5.0f}")
        return "\n".join([*lines, f"expected calibration error {self.ece:.4f}"])

    def _repr_html_(self) -> str:
        """A reliability plot, for notebooks: calibrated predictions are on the diagonal."""
        side, left, top = 220, 40, 12
        most = self.count.max() or 1.0
        dots = "".join(
            f"<circle cx='{left + side * predicted / count:.1f}' "
            f"cy='{top + side * (1 - accepted / count):.1f}' "
            f"r='{2 + 6 * (count / most) ** 0.5:.1f}' fill='#4c78a8' fill-opacity='0.8'>"
            f"<title>{count:.0f} nodes: predicted {predicted / count:.3f}, "
            f"accepted {accepted / count:.3f}</title></circle>"
            for count, predicted, accepted in zip(
                self.count, self.predicted, self.accepted, strict=True
            )
            if count
        )
        ticks = "".join(
            f"<text x='{left + side * tick:.0f}' y='{top + side + 14}' text-anchor='middle'>"
            f"{tick:g}</text>"
            f"<text x='{left - 4}' y='{top + side * (1 - tick) + 4:.0f}' text-anchor='end'>"
            f"{tick:g}</text>"
            for tick in (0, 0.5, 1)
        )
        middle = top + side / 2
        return (
            f"<svg width='{left + side + 14}' height='{top + side + 48}' font-size='11' "
            f"font-family='sans-serif' fill='currentColor'>"
            f"<rect x='{left}' y='{top}' width='{side}' height='{side}' fill='none' "
            f"stroke='currentColor' stroke-opacity='0.4'/>"
            f"<line x1='{left}' y1='{top + side}' x2='{left + side}' y2='{top}' "
            f"stroke='currentColor' stroke-opacity='0.4' stroke-dasharray='4'/>{ticks}{dots}"
            f"<text x='{left + side / 2:.0f}' y='{top + side + 28}' text-anchor='middle'>"
            f"predicted</text>"
            f"<text x='12' y='{middle:.0f}' text-anchor='middle' "
            f"transform='rotate(-90 12 {middle:.0f})'>accepted</text>"
            f"<text x='{left}' y='{top + side + 44}'>expected calibration error {self.ece:.4f}"
            f"</text></svg>"
        )
