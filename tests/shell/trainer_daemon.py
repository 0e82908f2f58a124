"""A daemon in miniature, to be killed: hosts one trainer and prints what the host posts.

python trainer_daemon.py DIRECTORY COMMAND...
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from hosting import Hosted

from spotd.core import actions

hosted = Hosted(Path(sys.argv[1]), command=tuple(sys.argv[2:]))
found = hosted.host.find()
if found is not None:
    hosted.host.adopt(found)
    print(found, flush=True)
else:
    hosted.host.start(actions.StartTrainer(7, None, 100.0))
while True:
    print(hosted.posted.get(), flush=True)
    time.sleep(0)
