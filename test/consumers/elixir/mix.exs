defmodule Consumer.MixProject do
  use Mix.Project

  # Mix builds macula by its mix.exs unless told otherwise; users of either way must be served.
  @manager if System.get_env("MACULA_MANAGER") == "rebar3", do: [manager: :rebar3], else: []

  def project do
    [
      app: :consumer,
      version: "1.0.0",
      deps: [{:macula, [path: System.get_env("MACULA_PATH", "../../..")] ++ @manager}]
    ]
  end

  def application, do: []
end
