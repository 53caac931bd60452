from .callback import GuardCallback as GuardCallback
from .guard import Guard as Guard
from .losses import LOSSES as LOSSES
from .sensors import SENSORS as SENSORS
from .settings import Training as Training
from .settings import Weights as Weights
