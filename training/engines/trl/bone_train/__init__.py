"""One backbone of a soup, trained with TRL: rewards, B and their balance come from `train-backbones serve-rewards`."""
