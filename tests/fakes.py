"""Roles that compute nothing: they record who was asked what, with which results of earlier calls."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class FakeFuture:
    """The result of a recorded call; asking for its value is recorded as well."""

    name: str  # "role.method" of the call it comes from
    log: list = dataclasses.field(repr=False, compare=False)

    def result(self):
        self.log.append(Call(self.name, "result", ()))
        return self.name


@dataclasses.dataclass(frozen=True)
class Call:
    role: str
    method: str
    arguments: tuple

    @property
    def name(self):
        return f"{self.role}.{self.method}"


@dataclasses.dataclass(frozen=True)
class FakeRole:
    """Stands for any role: implements every method that a dataflow may call."""

    name: str
    log: list

    def _call(self, method, *arguments):
        self.log.append(Call(self.name, method, arguments))
        return FakeFuture(f"{self.name}.{method}", self.log)

    def generate(self, prompts):
        return self._call("generate", prompts)

    def log_probs(self, rollout):
        return self._call("log_probs", rollout)

    def values(self, rollout):
        return self._call("values", rollout)

    def score(self, rollout, prompts):
        return self._call("score", rollout, prompts)

    def generate_greedy(self, prompts):
        return self._call("generate_greedy", prompts)

    def batch(self, prompts):
        return self._call("batch", prompts)

    def experience(self, rollout, scores, actor_log_probs, reference_log_probs, *values):
        return self._call("experience", rollout, scores, actor_log_probs, reference_log_probs, *values)

    def experience_over_greedy(self, rollout, scores, greedy_scores, actor_log_probs, reference_log_probs):
        given = (rollout, scores, greedy_scores, actor_log_probs, reference_log_probs)
        return self._call("experience_over_greedy", *given)

    def cost_experience(self, rollout, costs, actor_log_probs, reference_log_probs, cost_values):
        given = (rollout, costs, actor_log_probs, reference_log_probs, cost_values)
        return self._call("cost_experience", *given)

    def constrained(self, experience, cost_experience, costs):
        return self._call("constrained", experience, cost_experience, costs)

    def follow_costs(self, costs):
        return self._call("follow_costs", costs)

    def statistics(self, rollout, scores, experience):
        return self._call("statistics", rollout, scores, experience)

    def update(self, experience, *pretraining):
        return self._call("update", experience, *pretraining)

    def measure(self, batch, *told):
        return self._call("measure", batch, *told)

    def mismatched(self, judgements):
        return self._call("mismatched", judgements)

    def reference_points(self, log_probs, reference_log_probs):
        return self._call("reference_points", log_probs, reference_log_probs)


def fake_groups(names):
    """Return a fake for each role by name, and the list that they record to."""
    log = []
    return {name: FakeRole(name, log) for name in names}, log
