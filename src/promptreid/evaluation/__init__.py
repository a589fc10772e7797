"""How well captions find their person: metrics, and the evaluation of a model on a split."""
