%% Properties as EUnit tests: quiet while they hold, with the smallest counterexample when they do not.
-module(macula_property).

-export([test/3, holds/1]).

%% @doc An EUnit test of `Count' random cases.
-spec test(atom(), proper:outer_test(), pos_integer()) -> tuple().
test(Name, Property, Count) ->
    {timeout, 300, {atom_to_list(Name), fun() -> check(Property, Count) end}}.

check(Property, Count) ->
    case proper:quickcheck(Property, [quiet, long_result, {numtests, Count}]) of
        true -> ok;
        Counterexample -> error({property_fails, Counterexample, get(?MODULE)})
    end.

%% @doc For the body of a property: an exception is a failure. (PropEr as Debian has it asks for its
%% stack in a way that this OTP no longer knows.)
-spec holds(fun(() -> boolean())) -> boolean().
holds(Body) ->
    try
        Body()
    catch
        Class:Reason:Stack ->
            put(?MODULE, {Class, Reason, Stack}),
            false
    end.
