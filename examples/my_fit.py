"""A fit method owns its loop: training on a single step, written out.

robustsuite train my_fit --plugin my_fit.py --data digits --threat Linf:0.15 -o my_net
"""

from dataclasses import dataclass

from robustsuite.defenses import FitMethod, InnerSpec, Services, Term, ce, register_defense


@register_defense("my_fit", kind="fit", cost="2 passes")
@dataclass(frozen=True)
class MyFit(FitMethod):
    """Cross-entropy after one step of ``alpha`` (in units of eps) from a random start."""

    alpha: float = 1.25

    def fit(self, services: Services):
        optimizer = services.optimizer(services.module)
        for epoch in range(1, services.epochs + 1):
            for step in services.batches(epoch):
                x_adv = step.maximise(InnerSpec("ce", steps=1, alpha=self.alpha))
                services.descend(step, optimizer, {"ce_adv": Term(ce(step.forward(x_adv), step.q))})
            services.report(epoch)
        return services.module
