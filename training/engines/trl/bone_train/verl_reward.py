"""verl's reward manager for one backbone: the weighted sum of `train-backbones serve-rewards` at BONE_REWARDS, and
each objective beside it.

verl's own manager tells a reward function the text alone; whether an answer ended by itself, which some rewards
ask, only its tokens say."""

import asyncio
import json
import os

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

from bone_train.service import Service


class BoneRewardManager(RewardManagerBase):
    def __init__(self, config, tokenizer, compute_score=None, **_):
        super().__init__(config, tokenizer, compute_score)
        self.service = Service(os.environ["BONE_REWARDS"])

    async def run_single(self, data):
        item = data[-1:][0]
        responses = item.batch["responses"]
        length = int(item.batch["attention_mask"][-responses.shape[-1] :].sum())
        tokens = responses[:length].tolist()
        row = {
            **json.loads(item.non_tensor_batch["reward_model"]["ground_truth"]),
            "response": self.tokenizer.decode(tokens, skip_special_tokens=True),
            "finished": bool(tokens) and tokens[-1] == self.tokenizer.eos_token_id,
        }
        answer = await asyncio.to_thread(self.service.ask, "/rewards", {"rows": [row]})
        (scored,) = answer["rows"]
        objectives = dict(zip(answer["objectives"], scored["raw"]))
        return {"reward_score": scored["reward"], "reward_extra_info": objectives}
