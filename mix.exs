defmodule Mix.Tasks.Compile.MaculaNif do
  @moduledoc false
  use Mix.Task.Compiler

  @impl true
  def run(_args) do
    case System.cmd("sh", ["native/build.sh"], into: IO.stream(), stderr_to_stdout: true) do
      {_, 0} -> {:ok, []}
      _ -> Mix.raise("native/build.sh failed, see above")
    end
  end
end

defmodule Macula.MixProject do
  use Mix.Project

  # The version and the description are written once, in macula.app.src.
  {:ok, [{:application, :macula, app}]} = :file.consult("src_erl/macula.app.src")
  @app app

  def project do
    [
      app: :macula,
      version: List.to_string(@app[:vsn]),
      description: List.to_string(@app[:description]),
      language: :erlang,
      erlc_paths: ["src_erl"],
      erlc_options: [:debug_info],
      compilers: [:macula_nif, :erlang, :app],
      package: package(),
      deps: []
    ]
  end

  def application do
    [
      mod: @app[:mod],
      registered: @app[:registered],
      extra_applications: @app[:applications] -- [:kernel, :stdlib]
    ]
  end

  defp package do
    [
      licenses: ["Apache-2.0"],
      links: %{},
      build_tools: ["rebar3", "mix"],
      files:
        ~w(src_erl native priv/.gitignore priv/macula_call Cargo.toml Cargo.lock rebar.config mix.exs README.md CHANGELOG.md LICENSE)
    ]
  end
end
