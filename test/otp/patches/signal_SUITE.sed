# The peers whose channel is made busy use the carrier under test instead of OTP's example of one.
s/?CT_PEER(\["-proto_dist", "gen_tcp"\])/?CT_PEER()/
s/{gen_tcp_dist,dist_cntrlr_input_setup,3}/{macula_dist_input,init,2}/
