defmodule ShopWeb.Endpoint do
  # Where a Phoenix application has its endpoint. Phoenix itself cannot be had here, without Hex; to the guide only the
  # place in the supervision tree matters.
  use Agent

  def start_link(_options), do: Agent.start_link(fn -> :listening end, name: __MODULE__)
end
