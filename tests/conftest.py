"""What all tests stand on."""

import signal

# A shell lets what it starts in the background ignore Ctrl-C, and every process below inherits that; tests press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
