"""Instructions of the form d = f(a, ...) as expressions of numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Formula:
    """An instruction of the form d = f(a, ...), all of one type but for the `kinds` of some."""

    pattern: str | Callable[[list[str], list[str], str], str]
    allowed: frozenset[str] = frozenset()
    kinds: dict[int, str] = field(default_factory=dict)
    wide: bool = False

    def text(self, operands: list[str], modifiers: Sequence[str], kind: str) -> str:
        if callable(self.pattern):
            return self.pattern(operands, list(modifiers), kind)
        return self.pattern.format(*operands)


def _product(operands: list[str], modifiers: list[str], kind: str) -> str:
    a, b, *c = operands
    if "hi" in modifiers:
        text = f"multiply_high({a}, {b})"
    elif "lo" in modifiers or kind.startswith("f"):
        text = f"{a} * {b}"
    else:
        raise ValueError(modifiers)
    return f"{text} + {c[0]}" if c else text


def _extreme(name: str) -> Callable[[list[str], list[str], str], str]:
    def text(operands: list[str], modifiers: list[str], kind: str) -> str:
        # The ones whose names begin with f leave NaN out.
        function = f"f{name}" if kind[0] == "f" and "NaN" not in modifiers else f"{name}imum"
        return f"np.{function}({operands[0]}, {operands[1]})"

    return text


def _funnel(operands: list[str], modifiers: list[str], kind: str) -> str:
    side, mode = modifiers
    if side not in "lr" or kind != "b32":
        raise ValueError(modifiers)
    return f"funnel_shift({', '.join(operands)}, {side == 'l'}, {mode == 'wrap'})"


_ROUND = frozenset({"rn"})
FORMULAS: dict[str, Formula] = {
    "add": Formula("{} + {}", _ROUND),
    "sub": Formula("{} - {}", _ROUND),
    "mul": Formula(_product, frozenset({"rn", "lo", "hi", "wide"}), wide=True),
    "mad": Formula(_product, frozenset({"lo", "hi", "wide"}), wide=True),
    "fma": Formula("fma({}, {}, {})", _ROUND),
    "div": Formula("divide({}, {})", _ROUND),
    "rem": Formula("np.fmod({}, {})"),
    "rcp": Formula("1 / {}", _ROUND),
    "sqrt": Formula("np.sqrt({})", _ROUND),
    "neg": Formula("-{}"),
    "abs": Formula("np.abs({})"),
    "min": Formula(_extreme("min"), frozenset({"NaN"})),
    "max": Formula(_extreme("max"), frozenset({"NaN"})),
    "and": Formula("{} & {}"),
    "or": Formula("{} | {}"),
    "xor": Formula("{} ^ {}"),
    "not": Formula("~{}"),
    "shf": Formula(_funnel, frozenset({"l", "r", "wrap", "clamp"})),
    "prmt": Formula("permute({}, {}, {})"),
    "lop3": Formula("logic({}, {}, {}, int({}))"),
    "bfe": Formula("extract_bits({}, {}, {})", kinds={1: "u32", 2: "u32"}),
    "bfi": Formula("insert_bits({}, {}, {}, {})", kinds={2: "u32", 3: "u32"}),
}
