"""TRADES as a plugin: the whole file that a defense of one's own needs."""

from dataclasses import dataclass

from robustsuite.defenses import InnerSpec, StepMethod, Term, ce, kl, register_defense


@register_defense("my_trades", kind="step", paper="arXiv:1901.08573")
@dataclass(frozen=True)
class MyTrades(StepMethod):
    """Clean cross-entropy plus beta times the divergence between clean and adversarial predictions."""

    beta: float = 6.0

    def views(self, step):
        return {"adv": step.maximise(InnerSpec(loss="kl", init="gauss"))}

    def terms(self, step):
        clean, adv = step.logits("clean"), step.logits("adv")
        return {"ce": Term(ce(clean, step.q)), "kl": Term(kl(clean, adv), self.beta)}
