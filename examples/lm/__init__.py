"""A decoder of `nn.Stack` on text that every Python carries, in one process or in many."""
