# remark: nn.Stack
import liftax as nn


class Layer(nn.Module):
    width: int

    def setup(self):
        self.dense = nn.Dense(self.width)

    def __call__(self, x, _):
        return nn.relu(self.dense(x)), None


class Model(nn.Module):
    features: int
    depth: int

    def setup(self):
        self.layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth
        )(self.features)

    def __call__(self, x):
        return self.layers(x, None)[0]
