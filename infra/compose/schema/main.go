// Holds a Compose file against the Compose specification by its reference implementation (compose-go, Apache-2.0), the one that
// docker compose reads files with: names, types, references between services, and files that it mounts as secrets or environment.
// Prints the project as JSON. Usage: go run . FILE
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/compose-spec/compose-go/v2/cli"
)

func main() {
	options, err := cli.NewProjectOptions(os.Args[1:], cli.WithProfiles([]string{"*"}), cli.WithResolvedPaths(true))
	if err == nil {
		project, failure := options.LoadProject(context.Background())
		if failure == nil {
			var text []byte
			if text, failure = project.MarshalJSON(); failure == nil {
				fmt.Println(string(text))
				return
			}
		}
		err = failure
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
