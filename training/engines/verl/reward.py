"""verl's reward manager for one backbone: the weighted sum of `train-backbones serve-rewards` at BONE_REWARDS, and
each objective beside it.

verl's own manager tells a reward function the text alone; whether an answer ended by itself, which some rewards
ask, only its tokens say."""

import asyncio
import json
import os

import aiohttp
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

# Statuses and how often they are asked again: what may pass.
PASSING, TRIES = (429, 502, 503, 504), 10


class BoneRewardManager(RewardManagerBase):
    def __init__(self, config, tokenizer, compute_score=None, **_):
        super().__init__(config, tokenizer, compute_score)
        self.url = os.environ["BONE_REWARDS"].rstrip("/") + "/rewards"
        self.ends = {tokenizer.eos_token_id}

    async def run_single(self, data):
        item = data[-1:][0]
        responses = item.batch["responses"]
        length = int(item.batch["attention_mask"][-responses.shape[-1] :].sum())
        tokens = responses[:length].tolist()
        row = {
            **json.loads(item.non_tensor_batch["reward_model"]["ground_truth"]),
            "response": self.tokenizer.decode(tokens, skip_special_tokens=True),
            "finished": bool(tokens) and tokens[-1] in self.ends,
        }
        answer = await self.ask({"rows": [row]})
        (scored,) = answer["rows"]
        objectives = dict(zip(answer["objectives"], scored["raw"]))
        return {"reward_score": scored["reward"], "reward_extra_info": objectives}

    async def ask(self, body):
        for trial in range(TRIES):
            try:
                async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
                    async with session.post(self.url, json=body) as response:
                        if response.status == 200:
                            return await response.json()
                        complaint = f"{self.url}: {response.status}: {(await response.text())[:500]}"
                        if response.status not in PASSING:
                            raise ValueError(complaint)
            except aiohttp.ClientError as error:
                complaint = f"{self.url}: {error}"
            await asyncio.sleep(min(2**trial / 10, 10))
        raise RuntimeError(complaint)
