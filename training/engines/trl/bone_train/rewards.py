"""Reward functions in TRL's form, one an objective, all answered by one request a step."""

import json

from accelerate.utils import broadcast_object_list, gather_object


class Rewards:
    """The objectives of one backbone. The first process asks for the samples of all of them, so that a step has
    one mean of each reward, and all of them weigh the rewards by the weights in force at that step. Where the
    weights stay (`counts` is false), the service need not know the step."""

    def __init__(self, service, objectives, counts):
        self.service, self.counts = service, counts
        self.trainer = self.scored = None
        self.functions = [self.function(index, name) for index, name in enumerate(objectives)]

    def function(self, index, name):
        def reward(**batch):
            if index == 0:
                self.scored = self.score(**batch)
            return [row[index] for row in self.scored]

        reward.__name__ = name
        return reward

    def score(self, completions, completion_ids, sample, trainer_state, **_):
        ends = self.trainer.eos_token_ids
        own = [
            {**json.loads(source), "response": text(answer), "finished": bool(tokens) and tokens[-1] in ends}
            for source, answer, tokens in zip(sample, completions, completion_ids, strict=True)
        ]
        accelerator = self.trainer.accelerator
        rows = gather_object(own)
        answer = [None]
        if accelerator.is_main_process:
            try:
                answer = [self.service.score(trainer_state.global_step if self.counts else None, rows)]
            except Exception as error:  # the other processes wait for an answer: they must hear of it
                answer = [error]
        answer = broadcast_object_list(answer)[0]
        if isinstance(answer, Exception):
            raise RuntimeError(f"rewards of step {trainer_state.global_step}: {answer}") from answer
        scored, weights = answer
        # Read after the reward functions: TRL weighs this batch by it.
        self.trainer.reward_weights = self.trainer.reward_weights.new_tensor(weights)
        first = accelerator.process_index * len(own)
        return scored[first : first + len(own)]


def text(completion):
    return completion if isinstance(completion, str) else completion[0]["content"]
