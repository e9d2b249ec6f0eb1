# The cases that run over the default carrier, and over OTP's example of one, run over the default only.
s/\[{"default", ""}, GenTcpDistTest\]/[{"default", ""}]/
s/ GenTcpDistTest = case/ _ = case/
# dist_ctrl_proc_smoke checks our controllers, and dist_ctrl_proc_reject stays with the example.
s/start_node("", Name1, "-proto_dist gen_tcp")/start_node("", Name1, "")/
s/start_node("", Name2, GenTcpOptProlog)/start_node("", Name2, case Extra of "" -> ""; _ -> GenTcpOptProlog end)/
s/(Node1, gen_tcp_dist, dist_cntrlr_output_loop)/(Node1, macula_dist_bridge, loop)/
s/(Node2, erl_distribution_SUITE, dist_cntrlr_output_loop_size)/(Node2, macula_dist_input, loop)/
s/fun ({Mod, Fun, 2, _}) when Mod == OLoopMod/fun ({Mod, Fun, _, _}) when Mod == OLoopMod/
