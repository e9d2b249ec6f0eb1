# A controller that is a process cannot be closed as a port.
s/erlang:port_close(DCtrl) || close/exit(DCtrl, kill) || close/
