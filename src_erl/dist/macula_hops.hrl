%% Notes that a message passes here, in builds that measure it (./dev bench hops). In any other
%% nothing of it is left in the compiled code.
-ifdef(MACULA_HOPS).
-define(HOP(Name), ok = macula_nif:hop(Name)).
-else.
-define(HOP(Name), ok).
-endif.
