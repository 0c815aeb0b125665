"""Work for workers of Ray, which import it; it fails, dies or lasts as its task says."""

import os
import signal

from latent_clip.evaluation.servers import Made, ServerGoneError, TaskFailedError


class Work:
    """What a worker does with a task: pictures with its process's number, and whatever the task says shall go wrong."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, server, task):
        if task == "fails":
            raise TaskFailedError(f"{server.address} is out of memory")
        if task == "mistake":
            raise KeyError("ours")
        if task == "long":
            (self.folder / "begun").touch()
            server.stopped.wait(60)
            (self.folder / "ended").touch()
            raise ServerGoneError("stopped")
        if task == "dies" and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Made([f"{os.getpid()}".encode()], 0.1)
