// Holds dashboards against Grafana's schema, strictly: a field that it does not know, a missing one, a value out of its
// range, a panel's options included. The types are generated from Grafana's own schema (grafana-foundation-sdk, Apache-2.0);
// Python's do not look as closely. Usage: go run . FILE…
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/barchart"
	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/heatmap"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// known are the panels that declaration.py can write. All plugins would take a minute to compile.
var known = map[string]bool{
	"row": true, "barchart": true, "bargauge": true, "heatmap": true, "stat": true, "table": true, "timeseries": true,
}

func check(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var board dashboard.Dashboard
	if err := problem(board.UnmarshalJSONStrict(content)); err != nil {
		return err
	}
	for _, panel := range board.Panels {
		if panel.Panel != nil && !known[panel.Panel.Type] {
			return fmt.Errorf("the panel type %q is not registered in main.go", panel.Panel.Type)
		}
	}
	return problem(board.Validate())
}

// problem is nil for an empty list of errors, which the library hands back as an error.
func problem(err error) error {
	var found cog.BuildErrors
	if errors.As(err, &found) && len(found) == 0 {
		return nil
	}
	return err
}

func main() {
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(barchart.VariantConfig())
	runtime.RegisterPanelcfgVariant(bargauge.VariantConfig())
	runtime.RegisterPanelcfgVariant(heatmap.VariantConfig())
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(table.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())
	failed := len(os.Args) < 2
	for _, path := range os.Args[1:] {
		if err := check(path); err != nil {
			failed = true
			fmt.Printf("%s: %v\n", path, err)
		} else {
			fmt.Printf("%s: valid\n", path)
		}
	}
	if failed {
		os.Exit(1)
	}
}
