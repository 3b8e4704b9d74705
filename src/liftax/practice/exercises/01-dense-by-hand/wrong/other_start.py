# keys: init makes other first values
import liftax as nn


class MyDense(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        inputs = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.zeros_init(), (inputs, self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return x @ kernel + bias
